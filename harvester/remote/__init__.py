"""A site on the other side of one ssh connection: its commands, its spool and its large files."""
