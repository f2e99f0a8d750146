"use strict";
window.onload = function () {
  const root = document.getElementById("swagger-ui");
  // validatorUrl: null, since the default sends the page's address to a stranger's server.
  SwaggerUIBundle({ url: root.dataset.spec, domNode: root, deepLinking: true, validatorUrl: null });
};
