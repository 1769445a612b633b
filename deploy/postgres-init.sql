-- One database and one user per service: they share a server, and neither may open the other's database.
\set authsvc_password `cat /run/secrets/authsvc-password`
\set accounting_password `cat /run/secrets/accounting-password`
CREATE ROLE authsvc LOGIN PASSWORD :'authsvc_password';
CREATE ROLE accounting LOGIN PASSWORD :'accounting_password';
CREATE DATABASE authsvc OWNER authsvc;
CREATE DATABASE accounting OWNER accounting;
REVOKE ALL ON DATABASE authsvc, accounting FROM PUBLIC;
