"""What a user runs to find out whether it works here."""
