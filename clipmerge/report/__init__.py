"""The report: terminal tables, pages and pictures, from the record alone."""
