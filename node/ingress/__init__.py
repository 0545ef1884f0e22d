"""HTTP ingress: the port on which clients call handlers, complete awakeables and fetch results."""
