"""`python -m countersteer`: the command line."""

from countersteer.cli import main

if __name__ == "__main__":
    main()
