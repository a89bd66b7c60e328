"""The socket: who may connect, requests in, answers out."""
