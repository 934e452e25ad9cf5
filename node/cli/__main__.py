"""`python -m node.cli` is the command `radledger`."""

from node.cli.main import main

if __name__ == "__main__":
    main()
