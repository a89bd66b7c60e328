"""What people read: one module per screen, from an answer to printed lines. `output` has what they share."""
