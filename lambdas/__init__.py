"""Doorways: one folder per Lambda function, one handler in each."""
