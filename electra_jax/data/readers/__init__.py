"""Documents from files of many formats."""
