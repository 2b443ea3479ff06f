"""A toy for every op of the table of rules, found from the op's schema."""
