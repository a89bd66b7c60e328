"""What people type: one module per command, or per closely related pair.

Each module has `add`, which adds the command's flags and help to the command line, and a function that carries the
command out and returns its exit code. `cli` calls every `add`.
"""
