"""What crosses a process: message definitions, generated bindings, and the frame codec."""
