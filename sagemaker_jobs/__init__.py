"""Training jobs under the SageMaker container contract, one folder each."""
