"""The only place with third-party clients: each module fulfils a protocol of the library."""
