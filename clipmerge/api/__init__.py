"""The functions of the Python interface, one for each command of the command line."""
