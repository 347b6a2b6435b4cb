"""python -m common <verb> --help."""

from .cli import main

if __name__ == "__main__":
    main()
