"""The service: configs, records, queue, dispatcher and command line."""
