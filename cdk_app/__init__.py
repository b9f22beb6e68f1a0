"""The CDK app: what `cdk deploy` puts into an account."""
