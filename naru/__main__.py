"""`python -m naru` is the `naru` command."""

from naru.cli.main import main

if __name__ == "__main__":
    main()
