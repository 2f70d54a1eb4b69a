"""What a run or a table found, in words, pictures and pages."""
