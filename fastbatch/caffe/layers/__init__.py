"""The layers themselves, what they are told, and the life that they share."""
