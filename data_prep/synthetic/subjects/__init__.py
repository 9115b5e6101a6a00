"""What a synthetic clip shows: one function for each kind, which makes a shot with its sound and its labels."""
