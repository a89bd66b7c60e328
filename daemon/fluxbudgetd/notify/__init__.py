"""Outputs that events are delivered to. Each raises its own failures as `ChannelError`."""
