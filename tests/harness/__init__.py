"""What the tests share: real daemons, real interstat databases, a slow and obvious recount."""
