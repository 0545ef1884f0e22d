"""What is deployed where: deployments, services, handlers, and the settings that govern calls."""
