"""The socket: listening, connections and their limits, requests and command lines in, answers out."""
