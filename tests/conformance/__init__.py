"""What every backend must do alike: one short case a statement, spoken through the harness."""
