"""What any command needs."""

import getpass
import os

try:
    getpass.getuser()
except (KeyError, OSError):  # a user id without a name, as in containers; torch asks for the name when it is imported
    os.environ["USER"] = str(os.getuid())
