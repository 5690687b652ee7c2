"""`python -m quire.entrypoints.openai.api_server`: the same program as `quire serve`."""

import sys

from quire.cli.main import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
