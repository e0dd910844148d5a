"use strict";
// Keys only: every page works without this file.
const typing = (e) => /^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName);
const press = (selector) => { const found = document.querySelector(selector); if (found && !found.disabled) found.click(); };

document.addEventListener("keydown", (e) => {
  if (e.key === "Escape" && typing(e)) { e.target.blur(); return; }
  if (e.ctrlKey && e.key === "Enter" && e.target.id === "why") { e.preventDefault(); press("button[value=refused]"); return; }
  if (typing(e) || e.ctrlKey || e.metaKey || e.altKey) return;
  const keys = {
    a: () => press("button[value=approved]"),
    u: () => press("button[value=undone]"),
    r: () => document.getElementById("why")?.focus(),
    e: () => { const edit = document.querySelector("details.edit"); if (edit) { edit.open = true; document.getElementById("reflection").focus(); } },
    j: () => press("a[rel=next]"),
    k: () => press("a[rel=prev]"),
    n: () => { location.href = "/next" + (location.pathname.startsWith("/c/") ? "?after=" + location.pathname.slice(3) : ""); },
    "/": () => document.getElementById("search")?.focus(),
  };
  if (keys[e.key]) { e.preventDefault(); keys[e.key](); }
});
