"""HTTP as events: sans-IO cores behind one small interface, and asyncio shells over them."""
