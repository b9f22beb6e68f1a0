"""The function that lets others search: it writes the roles of the OpenSearch domain."""
