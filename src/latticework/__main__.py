"""``python -m latticework`` is the command line."""

from latticework.cli import main

main()
