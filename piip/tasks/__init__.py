"""What a network is used for."""
