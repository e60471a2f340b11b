"""Support code that any command needs. Imported before PyTorch and Matplotlib, whose imports need what is set here."""

import getpass
import os
import sys
import tempfile

try:
    tempfile.gettempdir()
except FileNotFoundError as error:
    sys.exit(f"error: {error.strerror}; set TMPDIR to a writable folder")

try:
    getpass.getuser()
except (KeyError, OSError):  # a user id without a name, as in containers
    os.environ["USER"] = str(os.getuid())
