"""The socket: listening, connections and their limits, requests in, answers out."""
