"""`python -m twolane` is the command `twolane`."""

from twolane.cli.command import main

if __name__ == "__main__":
    main()
