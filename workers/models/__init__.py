"""Loading models: from a card to a backend that can run a batch."""
