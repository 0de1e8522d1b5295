"""`python -m crossent` is the `crossent` command."""

from crossent.cli import main

if __name__ == "__main__":
    main()
