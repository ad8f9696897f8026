"""Learning to read words in photographs: a two-branch tower against one resolution at equal cost."""
