"""`python -m crossent` is the `crossent` command."""

from crossent.tools.commands import main

if __name__ == "__main__":
    main()
