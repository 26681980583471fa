/** The management API, as far as the tests need it. */
const { ADMIN_URL, MANAGEMENT_TOKEN, PROJECT_ID } = process.env;

async function request(method, path, body) {
  const answer = await fetch(`${ADMIN_URL}/manage/${path}`, {
    method,
    headers: { 'content-type': 'application/json', authorization: `Bearer ${MANAGEMENT_TOKEN}` },
    body: body && JSON.stringify(body),
  });
  const text = await answer.text();
  if (!answer.ok) throw new Error(`${method} /manage/${path}: ${answer.status} ${text}`);
  return text ? JSON.parse(text) : null;
}

export const newToken = (limits = {}) => request('POST', 'tokens', { project_id: PROJECT_ID, duration_minutes: 60, ...limits });
export const revoke = (token) => request('DELETE', `tokens/${token.id}`);
