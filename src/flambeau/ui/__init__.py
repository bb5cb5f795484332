"""The pages for a browser: the model's page, the dashboard and the API documentation."""
