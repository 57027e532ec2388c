"""The OpenAI-compatible server: requests in, slots of the decoder, answers out as they come."""
