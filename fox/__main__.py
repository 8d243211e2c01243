"""`python -m fox` is `fox`."""

from fox.cli import main

main()
