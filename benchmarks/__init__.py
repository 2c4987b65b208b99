"""What was measured, and how: see README.md here."""
