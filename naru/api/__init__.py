"""Generated stubs of `proto/naru/api`; `make gen` writes them, nobody edits them."""
