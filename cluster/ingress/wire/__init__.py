"""The only map between what clients send and read and what the router takes and gives.

Both skins' requests become `InferenceRequest`; answers become JSON or messages. Errors: `statuses`.
"""
