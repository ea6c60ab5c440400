"""`python -m jobs.dispatcher`."""

from jobs.dispatcher import main

main()
