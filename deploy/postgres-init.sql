-- One database per service: they share a server, never a table.
CREATE DATABASE authsvc;
CREATE DATABASE accounting;
