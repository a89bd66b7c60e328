"""The channels on which events are told: each one translates its own errors into `ChannelError`."""
