// Begins Swagger UI on this service's own document. Nothing is asked of other machines.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#interface", deepLinking: true, validatorUrl: null });
